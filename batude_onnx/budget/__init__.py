"""Budgets and the ranks that meet them."""

from batude_onnx.budget.frontier import Frontier, Losses, frontier, solve_frontier
from batude_onnx.budget.greedy import solve_greedy
from batude_onnx.budget.problem import Gains
from batude_onnx.budget.text import METRICS, parse_budget

__all__ = ["METRICS", "Frontier", "Gains", "Losses", "frontier", "parse_budget", "solve_frontier", "solve_greedy"]
