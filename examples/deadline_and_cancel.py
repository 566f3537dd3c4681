"""Stop an agent twice: by a deadline around the run, and by a cancel with a receipt."""

from __future__ import annotations

import trio

import semibot
from semibot.models import Call, Say, scripted_model, tool_request


@semibot.tool(is_parallel_safe=True)
async def dig(metres: int) -> str:
    """Dig a hole.

    Args:
        metres: How deep.
    """
    await trio.sleep(metres)
    return f"dug {metres} m"


async def main() -> None:
    hole = Call(
        [tool_request("a", "dig", {"metres": 60}), tool_request("b", "dig", {"metres": 90})]
    )
    model = scripted_model([hole, hole, Say("What a hole.")])
    agent = semibot.GraphAgent(model, tools=[dig])
    async with semibot.open_session(agent) as session:
        with trio.move_on_after(0.3):  # your own scope is the deadline
            async with session.run("Dig!") as run:
                await run.wait()
        print("after the deadline:", session.last_run.outcome)

        async with session.run("Dig again!") as run:
            await trio.sleep(0.3)
            receipt = await run.cancel("changed my mind")
        if receipt is not None:
            print(f"{receipt.outcome} ({receipt.reason}) in {receipt.seconds:.1f} s")
            for activity in receipt.stopped:
                print(f"  stopped {activity.kind} {activity.name} {activity.id}")
            print(f"  abandoned: {len(receipt.abandoned)}")

        async with session.run("And now?") as run:
            await run.wait()
        print(run.text)


if __name__ == "__main__":
    trio.run(main)
