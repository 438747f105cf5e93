"""White-box attacks on an erased flow: whoever has the weights searches a prompt, or trains, until the concept is back.

Each attack is behind one protocol (`base.Attack`) and runs on a `Scene`: the erased model, the pictures that are asked
for and who judges them. Beside each stands a control of the same length and number of tries, so that a gain says what
the attack does, and not that other prompts, or trainings, are other prompts.
"""

from .settings import WhiteBox

__all__ = ["WhiteBox"]
