"""python -m results.comparison"""

from minilatent.config import run_script

from .comparison import main

run_script(main)
