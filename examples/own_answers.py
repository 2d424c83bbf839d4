"""Answers the routes and the pages by methods of one's own."""

from typing import Any

from jaxserver import ChatRequest, InstructRequest, JAXServer

Pairs = list[list[str]]


class Numbered(JAXServer):
    """Answers as a server does by itself, and numbers what the routes answer."""

    def forward_instruct(self, data: InstructRequest) -> dict[str, Any]:
        if not self._funcs_generated:
            return {"status": "down"}
        pattern = self.config.instruct_format
        return self._numbered(
            pattern.format(instruct=data.prompt, system=data.system), data.greedy
        )

    def forward_chat(self, data: ChatRequest) -> dict[str, Any]:
        if not self._funcs_generated:
            return {"status": "down"}
        said = self.process_chat_history(data.history or [])
        said += self.config.prompt_prefix_chat + data.prompt
        return self._numbered(said + self.config.prompt_postfix_chat, data.greedy)

    def _numbered(self, prompt: str, greedy: bool | None) -> dict[str, Any]:
        text, tokens = "", 0
        for text, tokens in self.process(  # noqa: B007  # the last pair is the answer
            string=prompt, greedy=greedy, max_new_tokens=None
        ):
            pass
        self.number_of_served_request_until_last_up_time += 1
        return {
            "input": prompt,
            "response": text,
            "tokens_used": tokens,
            "number": self.number_of_served_request_until_last_up_time,
        }

    def process_gradio_chat(  # type: ignore[override]  # it wants no `**sampling`
        self,
        prompt: str,
        history: Pairs,
        max_new_tokens: int,
        system: str,
        greedy: bool,
    ) -> Any:
        string = self.chat_format(history=history, prompt=prompt, system=system)
        return (
            yield from self._page_updates(
                prompt, history, string, max_new_tokens, greedy
            )
        )

    def _page_updates(
        self, prompt: str, history: Pairs, string: str, most: int, greedy: bool
    ) -> Any:
        """What the page shows, while the answer comes and in the end."""
        history.append([prompt, ""])
        for answer, _ in self.process(
            string=string, greedy=greedy, max_new_tokens=most
        ):
            history[-1][1] = answer
            if self.config.stream_tokens_for_gradio:
                yield "", history
        return "", history


class Interview(Numbered):
    """Puts the chat page's conversations to the model as questions and answers."""

    def process_gradio_chat(  # type: ignore[override]  # it wants no `**sampling`
        self,
        prompt: str,
        history: Pairs,
        max_new_tokens: int,
        system: str,
        greedy: bool,
    ) -> Any:
        turns = [f"Question: {ask}\nAnswer: {answer}\n" for ask, answer in history]
        string = f"{system}\n{''.join(turns)}Question: {prompt}\nAnswer:"
        return (
            yield from self._page_updates(
                prompt, history, string, max_new_tokens, greedy
            )
        )


def main() -> None:
    server = Numbered.load(
        config={"slots": 1, "max_new_tokens": 24, "pre_compile": False}
    )
    for prompt in ("Name a colour.", "Name another."):
        print(server.forward_instruct(InstructRequest(prompt=prompt, greedy=True)))
    *_, (_, history) = server.process_gradio_chat("Say hello.", [], 24, "", True)
    print(history)
    server.end()


if __name__ == "__main__":
    main()
