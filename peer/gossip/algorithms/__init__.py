"""The registry: one line per algorithm."""

from __future__ import annotations

from collections.abc import Mapping

from peer.gossip.algorithm import Algorithm
from peer.gossip.algorithms.ad_psgd import ADPSGD
from peer.gossip.algorithms.al_dsgd import ALDSGD, ALMatcha
from peer.gossip.algorithms.async_sgd import AsyncSGD
from peer.gossip.algorithms.choco_sgd import ChocoSGD
from peer.gossip.algorithms.diloco import DiLoCo
from peer.gossip.algorithms.dpsgd import DPSGD
from peer.gossip.algorithms.gradient_tracking import GradientTracking
from peer.gossip.algorithms.matcha import Matcha
from peer.gossip.algorithms.noloco import NoLoCo
from peer.gossip.algorithms.qg_dsgdm import QGDSGDm
from peer.gossip.algorithms.ring_all_reduce import RingAllReduce
from peer.gossip.algorithms.slowmo import SlowMo
from peer.gossip.algorithms.sync_sgd import SyncSGD

ALGORITHMS: Mapping[str, type[Algorithm]] = {
    cls.name: cls
    for cls in (
        RingAllReduce,
        DPSGD,
        Matcha,
        SlowMo,
        DiLoCo,
        NoLoCo,
        QGDSGDm,
        GradientTracking,
        ChocoSGD,
        ALDSGD,
        ALMatcha,
        SyncSGD,
        AsyncSGD,
        ADPSGD,
    )
}
