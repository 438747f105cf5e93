"""What a training needs of memory: the estimate by phase, the plan that fits, and advice in sentences."""

from .advice import cheaper, explain, shortage
from .estimate import GB, ModelSize, block_sizes, estimate_memory, free_memory
from .plan import MemoryPlan, load_plan, memory_plans, overview, plan_memory, planned_request

__all__ = [
    "GB",
    "MemoryPlan",
    "ModelSize",
    "block_sizes",
    "cheaper",
    "estimate_memory",
    "explain",
    "free_memory",
    "load_plan",
    "memory_plans",
    "overview",
    "plan_memory",
    "planned_request",
    "shortage",
]
