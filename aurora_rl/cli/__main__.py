"""`python -m aurora_rl.cli`, where the command is not on the path."""

import sys

from aurora_rl.cli import main

sys.exit(main())
