#!/bin/sh
# Writes gossip_pb2.py and gossip_pb2.pyi (messages only; service methods are registered by hand in peer/transport/grpc.py).
# usage: proto/generate.sh [folder]     default folder: peer/wire; PYTHON names an interpreter that has grpcio-tools and mypy-protobuf.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../peer/wire}
python=${PYTHON:-python3}
bin=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m grpc_tools.protoc -I "$here" --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" \
  --python_out="$scratch" --mypy_out="$scratch" "$here/grapevine/v1/gossip.proto"
mkdir -p "$out"
cp "$scratch"/grapevine/v1/gossip_pb2.py "$scratch"/grapevine/v1/gossip_pb2.pyi "$out/"
