"""Latencies of a device that is not this machine: a bundle to measure there, and the table of its results."""

from dnas.latency.remote.bundle import write_bundle
from dnas.latency.remote.collect import collect
from dnas.latency.remote.ssh import Host, measure_on_host

__all__ = ["Host", "collect", "measure_on_host", "write_bundle"]
