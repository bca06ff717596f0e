"""Generated from proto/grapevine/v1/gossip.proto by proto/generate.sh; never edited. Messages only: the service methods are
registered by hand in `peer.transport.grpc`, where vectors travel as raw bytes."""
