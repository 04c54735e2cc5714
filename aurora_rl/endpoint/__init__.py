"""Questions to servers with OpenAI's chat protocol, retried within limits until they are answered.

    client       `ChatEndpoint`: asks one model many questions at a time
    arguments    `EndpointArguments`: model, retries, timeouts, prices
    addresses    checks of servers' addresses, for all programs
    api_key      the key, which comes from the environment and is never shown
    request      the body of a request
    replies      the parts of a reply with status 200: text, `Usage`, errors that proxies send with this status
    refusals     the meaning of a reply with another status: it concerns one question, or all of them
    pause        the pauses before retries; after a 429 all questions wait
    under_way    counts of the questions in progress, by which an unclear refusal is judged
    errors       `NoAnswerError` of a question, `EndpointRefusedError` of all, `BadReplyError` of an attempt

This package knows nothing of benchmarks and chains. It imports `openai` when an endpoint is made.

    endpoint = ChatEndpoint(EndpointArguments(model="judge", base_url="http://localhost:8000/v1"))
    score = await endpoint.ask([{"role": "user", "content": "..."}], read=float)
    await endpoint.close()
"""
