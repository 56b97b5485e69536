"""The simulated machine: a driver, link and CPU, and a trace as the program of forward passes that it carries out."""
