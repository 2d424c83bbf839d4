"""Serves a model with prompts of one's own."""

from collections.abc import Sequence

from jaxserver import InstructRequest, JAXServer

PERSONA = "You are a librarian. Answer in one short sentence."


class Librarian(JAXServer):
    """Writes every prompt itself, for the routes and the pages alike."""

    def format_instruct(self, system: str | None, instruction: str) -> str:
        return self.format_chat(history=[], prompt=instruction, system=system)

    def format_chat(
        self, history: Sequence[Sequence[str]], prompt: str, system: str | None
    ) -> str:
        turns = [("system", system or PERSONA)]
        for question, answer in history:
            turns += [("user", question), ("assistant", answer)]
        turns.append(("user", prompt))
        said = "".join(f"<|im_start|>{who}\n{what}<|im_end|>\n" for who, what in turns)
        return f"{said}<|im_start|>assistant\n"


def main() -> None:
    # Without compiling ahead only what one answer needs is compiled.
    server = Librarian.load(config={"slots": 1, "pre_compile": False})
    answer = server.forward_instruct(
        InstructRequest(prompt="Who wrote Hamlet?", greedy=True)
    )
    print(answer["input"])
    print(answer["response"])
    server.end()


if __name__ == "__main__":
    main()
