"""``python -m twinbud``."""

import sys

from twinbud.cli.main import main

sys.exit(main())
