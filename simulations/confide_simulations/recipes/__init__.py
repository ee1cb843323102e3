"""Five worked recipes, from packaged text or the user's own file to a model and its figures on held-out records.

    confide recipe run support-chatbot
    confide recipe run support-chatbot --data my-questions.jsonl

catalogue     the recipes: stages, formats, which data stands in for what
texts         packaged text in the format of each recipe
python_code   functions of the installed Python's standard library
running       from a recipe and a file to simulated runs, stage by stage
outcome       before and after on held-out records: table, JSON, plot

Each folder holds a recipe's run specifications, one TOML a stage, as an administrator would submit them.
"""
