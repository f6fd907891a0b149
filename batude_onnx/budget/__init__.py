"""Budgets and the ranks that meet them."""

from batude_onnx.budget.allocation import Allocation, allocate
from batude_onnx.budget.frontier import Frontier, frontier
from batude_onnx.budget.greedy import Gains, solve_greedy
from batude_onnx.budget.solving import Losses, solve
from batude_onnx.budget.terms import Choice, Mask, Terms, amount, least, nearest, plan_of, require_feasible, smallest_of
from batude_onnx.budget.text import METRICS, budget_metrics, parse_budget

__all__ = [
    "METRICS",
    "Allocation",
    "Choice",
    "Frontier",
    "Gains",
    "Losses",
    "Mask",
    "Terms",
    "allocate",
    "amount",
    "budget_metrics",
    "frontier",
    "least",
    "nearest",
    "parse_budget",
    "plan_of",
    "require_feasible",
    "smallest_of",
    "solve",
    "solve_greedy",
]
