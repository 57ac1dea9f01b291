"""Tests of what turns measurements into verdicts: python3 -m unittest discover -s benches/compare"""

import dataclasses
import json
import unittest

import engine
import jobs
from measure import Row
from report import Result

OPTIONS = {"rounds": 3, "extra_rounds": 0, "time": 1, "shm_mib": 1, "disk_mib": 1, "tolerance": 0.05}


def row(quarry: list[float], peer: list[float]) -> Row:
    """A row with these IOPS per round."""

    def said(iops: float) -> dict[str, float]:
        return {"iops": iops, "mb_per_s": 1.0, "p50_us": 1.0, "p99_us": 2.0, "target_cpu_us_per_io": 3.0}

    rounds = {"quarry": [said(iops) for iops in quarry], "tgt aio": [said(iops) for iops in peer]}
    return Row("shm", jobs.ALL["r4k-q1"], rounds)


def verdict(made: Row):
    """The row's verdict, with the usual tolerance."""
    result = Result({}, OPTIONS)
    result.add([made])
    (only,) = result.verdicts(0.05)
    return only


class Verdicts(unittest.TestCase):
    def test_the_median_of_the_ratios_within_rounds_counts(self):
        # The medians of the rates alone would say 20 to 10.
        self.assertEqual(verdict(row([10, 20, 30], [10, 40, 10])).ratio, 1.0)

    def test_slower_by_more_than_the_tolerance_fails(self):
        self.assertTrue(verdict(row([95], [100])).passed)
        self.assertFalse(verdict(row([94], [100])).passed)

    def test_a_peer_that_goes_through_the_page_cache_meets_the_quarry_that_does(self):
        made = row([10], [5])
        made.rounds["tgt rdwr"] = [{"iops": 40.0}]
        self.assertEqual(made.ratios("tgt rdwr"), [0.25])
        made.rounds["quarry page cache"] = [{"iops": 60.0}]
        self.assertEqual((made.ratios("tgt aio"), made.ratios("tgt rdwr")), ([2.0], [1.5]))

    def test_a_job_may_have_to_be_faster_than_a_peer_and_than_itself_at_another(self):
        made = row([15], [10])
        made.job = dataclasses.replace(made.job, name="other", floors=(("tgt aio", 2), ("r4k-q1", 0.5)))
        result = Result({}, OPTIONS)
        result.add([row([40], [10]), made])
        told = {(verdict.job, verdict.peer): verdict.passed for verdict in result.verdicts(0.05)}
        expected = {("r4k-q1", "tgt aio"): True, ("other", "tgt aio"): False, ("other", "itself at r4k-q1"): False}
        self.assertEqual(told, expected)

    def test_a_row_in_doubt_is_measured_again(self):
        self.assertTrue(row([125], [100]).is_close())
        self.assertFalse(row([135], [100]).is_close())

    def test_the_medium_itself_is_no_peer(self):
        made = row([10], [5])
        made.rounds["raw file"] = [{"iops": 1000}]
        self.assertEqual(made.peers(), ["tgt aio"])

    def test_table_and_json_have_every_target(self):
        result = Result({"kernel": "6"}, OPTIONS)
        result.add([row([10], [5])])
        table = result.table()
        self.assertIn("| shm | r4k-q1 | quarry | 10 |", table)
        self.assertIn("**2.00** (2.00-2.00)", table)
        told = json.loads(json.dumps(result.as_json(result.verdicts(0.05))))
        self.assertEqual(told["verdicts"][0]["ratio"], 2.0)


class Jobs(unittest.TestCase):
    def test_names_are_given_once(self):
        self.assertFalse(set(jobs.ALL) & set(engine.ALL))

    def test_sets_name_jobs_and_writes_end_with_a_flush(self):
        self.assertLessEqual({*jobs.FULL, *jobs.QUICK}, set(jobs.ALL))
        for job in jobs.ALL.values():
            self.assertEqual("--rw read" not in job.arguments, "--end-fsync" in job.arguments, job.name)


if __name__ == "__main__":
    unittest.main()
