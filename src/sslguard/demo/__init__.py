"""The main job on real input in minutes: mark an encoder, steal it, show the theft, accuse no innocent.

Everything happens live but the null: the controls come with the package and marking never saw them. The paper's
published losses run beside the cured ones under the same secret, so that their false claims are seen, not told.
"""

from sslguard.demo.run import DemoResult, run_demo
from sslguard.demo.settings import DEFAULTS, DemoSettings

__all__ = ["DEFAULTS", "DemoResult", "DemoSettings", "run_demo"]
