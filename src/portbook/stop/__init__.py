"""Letting go of a port: who would have to end, what forbids it, ending it, and whether the port can be had then.

    from portbook.stop.run import look, carry_out

    plan = look(8080)
    if not plan.forbidden():
        done = carry_out(plan)

Nothing here asks a person; ``portbook stop`` does.
"""
