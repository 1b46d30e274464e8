"""All analyses of arXiv 2402.18312 on one model: what they will cost, the results, and which of the paper's claims hold.

from pycotmech import paper
from pycotmech.runs import Settings

settings = Settings(model="smollm2-135m", examples=8)
outcome = paper.run(settings, "paper-results")
outcome = paper.run(settings, "paper-results", tasks=("easy", "shuffled", "competing"))
outcome = paper.run(settings, "paper-results", workers=4)

Tests: `test_attempts.py` for `analyst`; `test_runner.py` for `one_setting`, `summary`; `test_entries.py` for `plan`;
`test_settings.py` for `settings_table`; tests/report/test_pages.py for `views`; the others have tests of their own names.
"""

from pycotmech.paper.claims import CLAIMS, Claim, Verdict
from pycotmech.paper.entries import ENTRIES
from pycotmech.paper.estimate import PaperEstimate
from pycotmech.paper.runner import PaperOutcome, run
from pycotmech.paper.settings import EASY, HARDER, TaskSetting

__all__ = ["CLAIMS", "EASY", "ENTRIES", "HARDER", "Claim", "PaperEstimate", "PaperOutcome", "TaskSetting", "Verdict", "run"]
