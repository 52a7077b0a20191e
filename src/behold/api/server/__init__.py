"""`behold serve`: the OpenAI API over one model, with the chat page at `/`.

Everything that needs the extra [server] (fastapi, starlette, uvicorn, pydantic, prometheus_client) is inside this
package, and nothing outside it imports it before it is asked for.
"""
