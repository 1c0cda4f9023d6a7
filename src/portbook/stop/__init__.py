"""End the processes that hold a port: which they are, what forbids it, ending them, and whether the port is free then.

    from portbook.stop.run import carry_out, plan_stop

    plan = plan_stop(8080)
    if not plan.forbidden():
        report = carry_out(plan)

Nothing here asks for confirmation; the command ``portbook stop`` does.
"""
