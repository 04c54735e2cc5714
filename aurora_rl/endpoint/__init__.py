"""Questions to servers that speak OpenAI's chat protocol: asked again until they are answered, within bounds.

    client       `ChatEndpoint`: asks one model, many questions at a time
    arguments    `EndpointArguments`: which model, how often, how long, at what price
    addresses    the rule for addresses of servers, the endpoints' and others'
    api_key      the key, which comes from the environment and is shown nowhere
    request      what is sent
    replies      what comes back with a status of 200: text, `Usage`, errors all the same
    refusals     what comes back with another status, and whom it concerns
    pause        how long to wait before the next attempt; after a 429 all questions wait
    under_way    the questions under way, by which an unclear refusal is judged
    errors       `NoAnswerError` of a question, `EndpointRefusedError` of all, `BadReplyError` of an attempt

The room knows nothing of benchmarks and chains. The package `openai` is imported when an endpoint is made.

    endpoint = ChatEndpoint(EndpointArguments(model="judge", base_url="http://localhost:8000/v1"))
    score = await endpoint.ask([{"role": "user", "content": "..."}], read=float)
    await endpoint.close()
"""
