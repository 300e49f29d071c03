"""A job counts, times, estimates, warns once, and stops when asked."""

import pytest
from wan_animate.wan.runtime.errors import Cancelled
from wan_animate.wan.runtime.job import Job, Progress


def test_progress_never_falls_and_ends_at_one():
    seen: list[Progress] = []
    job = Job(on_progress=seen.append)
    job.expect("people", 4, seconds_a_unit=0.01)
    job.expect("write", 2, seconds_a_unit=0.5)
    for name, units in (("people", 4), ("write", 2)):
        with job.stage(name) as stage:
            for _ in range(units):
                stage.advance()
    values = [progress.progress for progress in seen]
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert seen[0].eta_s is None  # nothing was measured yet
    assert seen[1].eta_s is not None


def test_the_first_stage_does_not_claim_that_all_is_done():
    seen: list[Progress] = []
    job = Job(on_progress=seen.append)
    with job.stage("probe", total=1) as stage:
        stage.advance()
    assert [progress.progress for progress in seen] == [0.0, 0.0]
    job.expect("clip.denoise", 100, seconds_a_unit=1.0)
    with job.stage("clip.denoise") as stage:
        stage.advance()
    assert seen[-1].progress < 0.1


def test_time_left_counts_announced_stages():
    seen: list[Progress] = []
    job = Job(on_progress=seen.append)
    job.expect("people", 2, seconds_a_unit=0.001)
    job.expect("clip.denoise", 10, seconds_a_unit=3.0)
    with job.stage("people") as stage:
        stage.advance()
    assert seen[-1].eta_s == pytest.approx(30, abs=0.5)


def test_a_stage_visited_twice_adds_up():
    job = Job()
    for _ in range(2):
        with job.stage("clip.decode") as stage:
            stage.advance()
    assert set(job.timings) == {"clip.decode"}
    assert job.timings["clip.decode"] >= 0


def test_cancel_is_noticed_at_the_next_tick_and_on_entry():
    asked = [False]
    job = Job(cancel_requested=lambda: asked[0])
    with pytest.raises(Cancelled), job.stage("pose") as stage:
        stage.advance()
        asked[0] = True
        stage.advance()
    with pytest.raises(Cancelled), job.stage("smooth"):
        pytest.fail("a stage must not begin after a cancel")


def test_a_failed_stage_can_be_followed_by_another():
    job = Job()
    with pytest.raises(RuntimeError, match="boom"), job.stage("pose"):
        raise RuntimeError("boom")
    with job.stage("smooth") as stage:
        stage.advance()


def test_stages_do_not_nest_and_have_known_names():
    job = Job()
    with pytest.raises(RuntimeError, match="inside"), job.stage("pose"), job.stage("smooth"):
        pass
    with pytest.raises(ValueError, match="unknown stage"), Job().stage("poses"):
        pass


def test_a_warning_is_kept_once():
    job = Job()
    job.warn("no face in frames 3-5")
    job.warn("no face in frames 3-5")
    assert job.warnings == ["no face in frames 3-5"]


def test_progress_reads_as_one_line():
    progress = Progress(
        stage="clip.denoise", done=3, total=20, progress=0.4, eta_s=12.3, detail="clip 1/2 step 3/10"
    )
    assert str(progress) == "clip.denoise clip 1/2 step 3/10 (40%, 12 s left)"
