-- The request of `make bench-http`: 20 documents of 500 characters each, all different, as a RAG client sends them.
local words = {"search", "engine", "ranks", "passages", "by", "how", "well", "they", "answer", "the", "question", "of", "a", "user"}
math.randomseed(1)
local documents = {}
for d = 1, 20 do
    local text = "Document " .. d .. ":"
    while #text < 500 do text = text .. " " .. words[math.random(#words)] end
    documents[d] = '"' .. text:sub(1, 500) .. '"'
end
wrk.method = "POST"
wrk.path = "/v1/rerank"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model": "m", "query": "how are passages ranked?", "documents": [' .. table.concat(documents, ", ") .. "]}"

function done(summary, latency)
    io.write(string.format("%.0f requests/s, median %.3f ms, 99 %% %.3f ms, %d errors\n", summary.requests / summary.duration * 1e6,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000,
        summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout))
end
