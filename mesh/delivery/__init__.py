"""The delivery plan: what happens to a message after it left the broker.

One `Plan` per subscription says when a failed delivery is tried again and where it goes in the end; one `Deliverer`
carries it out for its `Target`: message to call, call to the app, the app's answer to a judgement. What is given up
becomes a `Letter`. docs/delivery.md is the user's page.
"""

from mesh.delivery.deliverer import Deliverer
from mesh.delivery.event_target import EventTarget
from mesh.delivery.letters import DeadLetters, Letter, Reason, dead_letter
from mesh.delivery.plan import BackOff, Plan
from mesh.delivery.target import Judgement, Prepared, Target, Verdict
from mesh.delivery.watch import DeliveryWatch, Outcome

__all__ = [
    "BackOff",
    "DeadLetters",
    "Deliverer",
    "DeliveryWatch",
    "EventTarget",
    "Judgement",
    "Letter",
    "Outcome",
    "Plan",
    "Prepared",
    "Reason",
    "Target",
    "Verdict",
    "dead_letter",
]
