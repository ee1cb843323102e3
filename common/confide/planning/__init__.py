"""What a run will do, need and take, before anybody agrees to it. May import every other package.

- `run_plan`: in words and numbers, for whoever submits it: `confide run plan`
- `feedback_plan`: what a feedback run can tell with so few organizations
- `fitness`: whether model, tokenizer and method of a specification go together
- `timing`: how fast this machine trains it, measured on made-up records
"""
