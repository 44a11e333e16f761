"""Keep the libraries' chatter out of an executor's log. Import it before diffusers and transformers.

They note that torchvision is missing (nothing here uses it) and that a prompt was cut (this is said to
who asked for the picture). A user's own settings win.
"""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
