"""On PYTHONPATH of commands that tests start: they are traced for coverage, the workers that they start are not.

Python imports this by itself when it starts, after coverage's own hook. Tracing costs workers 40 % more time and slows
what they measure, for nothing: they end without a word to coverage.
"""

import os

os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
