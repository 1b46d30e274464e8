"""The exact sweep: the climb of variants, how they join, edits of rows on their way, evaluation, plan and replay."""
