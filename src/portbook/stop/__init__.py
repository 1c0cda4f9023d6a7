"""Letting go of a port: who would have to end, what forbids it, ending it, and whether the port can be had then.

    from portbook.stop.run import plan_stop, carry_out

    plan = plan_stop(8080)
    if not plan.forbidden():
        done = carry_out(plan)

Nothing here asks a person; ``portbook stop`` does.
"""
