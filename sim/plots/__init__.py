"""Plots of what a sweep found."""
