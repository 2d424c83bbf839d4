"""A web application of one's own, with a language model under `/llm`."""

import fastapi
import pydantic
import uvicorn

from jaxserver import JAXServer, Message


class Article(pydantic.BaseModel):
    text: str


def build(server: JAXServer) -> fastapi.FastAPI:
    """The application; every route of the server is there too, below `/llm`."""
    app = fastapi.FastAPI(title="newsroom")

    @app.post("/headline")
    def headline(article: Article) -> dict[str, str]:
        wish = f"Write a headline for this article:\n\n{article.text}"
        prompt = server.formatter.format([Message(role="user", content=wish)])
        *_, (answer, _) = server.process(prompt, greedy=True, max_new_tokens=24)
        return {"headline": answer.strip()}

    app.mount("/llm", server.app(pages=False))
    return app


def main() -> None:
    server = JAXServer.load()
    try:
        uvicorn.run(build(server), host="127.0.0.1", port=8000)
    finally:
        server.end()


if __name__ == "__main__":
    main()
