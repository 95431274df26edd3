"""``python -m twinbud``."""

import sys

from twinbud.cli import main

sys.exit(main())
