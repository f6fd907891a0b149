"""Budgets and the ranks that meet them."""

from batude_onnx.budget.frontier import Frontier, Losses, frontier, solve_frontier
from batude_onnx.budget.greedy import Gains, solve_greedy
from batude_onnx.budget.terms import Choice, Terms, amount, plan_of, require_feasible
from batude_onnx.budget.text import METRICS, budget_metrics, parse_budget

__all__ = [
    "METRICS",
    "Choice",
    "Frontier",
    "Gains",
    "Losses",
    "Terms",
    "amount",
    "budget_metrics",
    "frontier",
    "parse_budget",
    "plan_of",
    "require_feasible",
    "solve_frontier",
    "solve_greedy",
]
