"""A report of a load measurement, for tests."""

from __future__ import annotations

from torchmar.load.results import (
    HistogramCounts,
    Latency,
    Machine,
    Report,
    RequestsInfo,
    SelfCheck,
    Step,
    TargetInfo,
    Window,
)


def step(rate: float = 100.0, p99: float = 25.0) -> Step:
    """Return a step of ten seconds whose two answers took 20 ms."""
    latency = Latency(
        mean=20.0,
        p50=20.0,
        p90=22.0,
        p95=23.0,
        p99=p99,
        p999=p99,
        max=p99,
        p50_interval=(19.5, 20.5),
        p95_interval=None,
        p99_interval=(p99 - 1, p99 + 1),
    )
    window = Window(start_s=0, duration_s=10, sent=2, completed=2, errors=0, in_flight=0, p50_ms=20.0, p99_ms=p99)
    return Step(
        kind="open",
        arrivals="poisson",
        rate=rate,
        connections=1,
        warmup_s=1,
        duration_s=10,
        complete=True,
        sent=2,
        completed=2,
        throughput=0.2,
        throughput_interval=None,
        latency_ms=latency,
        histogram=HistogramCounts(
            unit="us", significant_digits=3, count=2, sum=40_000, max=20_000, buckets=((5346, 2),)
        ),
        windows=(window,),
        errors=(),
        wrong_answers=0,
        wrong_answer="",
        server=None,
        processes=None,
        client=SelfCheck(send_delay_p99_ms=0.1, busy_fraction=0.05, other_load_cores=0.0),
        stable=True,
        unstable_reason="",
        valid=True,
        invalid_reasons=(),
    )


def report(*steps: Step) -> Report:
    """Return a report with these steps."""
    return Report(
        created="2026-11-29T12:00:00Z",
        torchmar="0.1.0",
        machine=Machine(processor="a processor", cores=2, flags=("avx2",), system="Linux 6", python="3.11.7"),
        target=TargetInfo(
            url="http://127.0.0.1:8080",
            protocol="torchserve",
            engine="builtin",
            model="digits",
            model_version="1.0",
            local=True,
        ),
        requests=RequestsInfo(source="archives/digits", count=10, bytes=300, compared=10),
        steps=steps,
    )
