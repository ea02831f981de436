"""The task families. A new one is one file in this folder and one entry in :data:`FAMILIES`."""

from muppet_fairseq.families.base import Family
from muppet_fairseq.families.classification import Classification
from muppet_fairseq.families.commonsense import Commonsense
from muppet_fairseq.families.mrc import MRC
from muppet_fairseq.families.regression import Regression
from muppet_fairseq.families.summarization import Summarization
from muppet_fairseq.families.tagging import Tagging

_ALL = (Classification(), Commonsense(), MRC(), Summarization(), Regression(), Tagging())

FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
