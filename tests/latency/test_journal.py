from __future__ import annotations

import json

from dnas.latency.journal import Journal
from dnas.latency.statistics import Round

# A journal in the format of the first release.
FIRST_FORMAT = (
    '{"crc": 3247577011, "record": {"format":"dnas latency journal","schema_version":1,"provenance":{"spa'
    'ce":"small","input_size":[64,64],"device":{"type":"cpu","name":"Example CPU","memory_bytes":85899345'
    '92,"cores":2,"compute_capability":null},"backend":"eager","precision":"fp32","memory_format":"contig'
    'uous","threads":1,"batch":1,"cache":"warm","tf32":false,"cudnn_benchmark":true,"effort":{"rounds":2.'
    '0,"time_per_entry":0.0001,"warm_up_s":0.0,"sample_s":0.001,"tolerance":0.1,"extra_rounds":0.0,"most_'
    'samples":2.0},"software":{"torch":"2.14.1"},"commit":null,"command":"dnas latency build small --out '
    't.json","date":"2026-01-02T03:04:05+00:00","seconds":0.0,"sittings":0,"before":{"load_average":"0.10'
    ' 0.20 0.30"},"after":{"load_average":"0.10 0.20 0.30"},"notes":""}}}\n'
    '{"crc": 578155643, "record": {"sitting":{"pid":123,"host":"example","date":"2026-01-02T03:04:05+00:0'
    '0"}}}\n'
    '{"crc": 1812951981, "record": {"key":"conv in=2x4x4 out=2 stride=1","round":{"samples_ms":[0.0081593'
    '99999385641],"calls_per_sample":40,"throttled":false},"seconds":0.001947}}\n'
    '{"crc": 3044233595, "record": {"key":"conv in=1x4x4 out=1 stride=1","round":{"samples_ms":[0.0075168'
    '12502217363],"calls_per_sample":80,"throttled":false},"seconds":0.004856}}\n'
    '{"crc": 537331584, "record": {"key":"conv in=2x4x4 out=2 stride=1","round":{"samples_ms":[0.00763714'
    '08449375225],"calls_per_sample":71,"throttled":false},"seconds":0.00567}}\n'
)


def test_a_journal_of_the_first_release_is_read_and_continued(tmp_path):
    path = tmp_path / "t.json.journal.jsonl"
    path.write_text(FIRST_FORMAT)
    journal = Journal(path)
    assert journal.provenance is not None
    assert journal.provenance.device.name == "Example CPU"
    assert journal.holder == "process 123 on example, since 2026-01-02T03:04:05+00:00"
    one, two = (f"conv in={n}x4x4 out={n} stride=1" for n in (1, 2))
    first = {two: [Round((0.008159399999385641,), 40), Round((0.0076371408449375225,), 71)]}
    first[one] = [Round((0.007516812502217363,), 80)]
    assert journal.rounds == first
    assert (journal.sittings, journal.seconds) == (1, 0.001947 + 0.004856 + 0.00567)
    journal.begin(journal.provenance)
    journal.append(one, Round((0.25, 0.5), 3, True), 1.5)
    again = Journal(path)
    assert again.rounds == {**first, one: [*first[one], Round((0.25, 0.5), 3, True)]}
    assert again.sittings == 2
    assert path.read_text().startswith(FIRST_FORMAT)


def test_a_changed_figure_does_not_match_its_checksum(tmp_path):
    path = tmp_path / "t.json.journal.jsonl"
    path.write_text(FIRST_FORMAT.replace('"samples_ms":[0.0076', '"samples_ms":[0.0075'))
    assert sum(map(len, Journal(path).rounds.values())) == 2
    outer = {"crc": 0, "record": {"key": "k", "round": {}, "seconds": 0}}
    path.write_text(FIRST_FORMAT + json.dumps(outer) + "\n" + FIRST_FORMAT.splitlines()[-1] + "\n")
    assert sum(map(len, Journal(path).rounds.values())) == 4
