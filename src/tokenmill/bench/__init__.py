"""What is measured and how: tasks, the sweep over methods and budgets, a store that survives a kill, the report."""
