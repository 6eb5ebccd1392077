// Clients from npm, for test_npm.py. Each line of standard input is {"client", "url", "key", "query", "documents"}; each line of the answer
// {"found": [[index, score], ...]} or {"error"}.
import { createInterface } from 'node:readline';

console.log = console.error; // Continue's client writes there

const pairs = (results) => results.map((r) => [r.index, r.relevanceScore ?? r.relevance_score ?? r.score]);

function check(condition, what) {
    if (!condition) throw new Error(`wrong: ${what}`);
}

async function cohere(version, { url, key, query, documents }) {
    const { CohereClient, CohereClientV2 } = await import('cohere-ai');
    const client = new (version === 1 ? CohereClient : CohereClientV2)({ environment: url, token: key, maxRetries: 0 });
    const answer = await client.rerank({ model: 'm', query, documents, topN: documents.length || undefined });
    check(answer.id && answer.meta.apiVersion.version && answer.meta.billedUnits.searchUnits === 1, 'meta');
    return pairs(answer.results);
}

async function aiSdk(provider, { query, documents }) {
    const { rerank } = await import('ai');
    const answer = await rerank({ model: provider.reranking('m'), query, documents, maxRetries: 0 });
    check(answer.ranking.every((r) => r.document === documents[r.originalIndex]), 'document');
    return answer.ranking.map(({ originalIndex, score }) => [originalIndex, score]);
}

async function continueDev(provider, { url, key, query, documents }) {
    const { constructLlmApi } = await import('@continuedev/openai-adapters');
    const api = constructLlmApi({ provider, apiKey: key, apiBase: `${url}/v1/` });
    const answer = await api.rerank({ model: 'm', query, documents });
    check(answer.data ?? answer.results, `results, found ${JSON.stringify(answer)}`);
    return pairs(answer.data ?? answer.results);
}

const clients = {
    'cohere-ai v1': (asked) => cohere(1, asked),
    'cohere-ai v2': (asked) => cohere(2, asked),
    'cohere-ai v1 with objects': async ({ url, key, query, documents }) => {
        const { CohereClient } = await import('cohere-ai');
        const client = new CohereClient({ environment: url, token: key, maxRetries: 0 });
        const objects = documents.map((text, i) => ({ text, id: `${i}` }));
        const { results } = await client.rerank({ query, documents: objects, returnDocuments: true });
        check(results.every((r) => r.document.text === documents[r.index] && r.document.id === `${r.index}`), 'document');
        return pairs(results);
    },
    '@langchain/cohere': async ({ url, key, query, documents }) => {
        const { CohereRerank } = await import('@langchain/cohere');
        const { CohereClient } = await import('cohere-ai');
        const client = new CohereClient({ environment: url, token: key, maxRetries: 0 });
        const given = documents.map((pageContent, place) => ({ pageContent, metadata: { place } }));
        const found = await new CohereRerank({ client, model: 'm', topN: documents.length }).compressDocuments(given, query);
        return found.map(({ metadata }) => [metadata.place, metadata.relevanceScore]);
    },
    '@ai-sdk/cohere': async (asked) => {
        const { createCohere } = await import('@ai-sdk/cohere');
        return aiSdk(createCohere({ baseURL: `${asked.url}/v2`, apiKey: asked.key }), asked);
    },
    'voyage-ai-provider': async (asked) => {
        const { createVoyage } = await import('voyage-ai-provider');
        return aiSdk(createVoyage({ baseURL: `${asked.url}/v1`, apiKey: asked.key }), asked);
    },
    voyageai: async ({ url, key, query, documents }) => {
        const { VoyageAIClient } = await import('voyageai');
        const client = new VoyageAIClient({ environment: `${url}/v1`, apiKey: key });
        const { data, usage } = await client.rerank({ model: 'm', query, documents, returnDocuments: true, truncation: true }, { maxRetries: 0 });
        check(usage.totalTokens > 0 && data.every((r) => r.document === documents[r.index]), 'document');
        return pairs(data);
    },
    'voyageai with nothing but the texts': async ({ url, key, query, documents }) => {
        const { VoyageAIClient } = await import('voyageai');
        const { data } = await new VoyageAIClient({ environment: `${url}/v1`, apiKey: key }).rerank({ model: 'm', query, documents }, { maxRetries: 0 });
        return pairs(data);
    },
    '@mixedbread/sdk': async ({ url, key, query, documents }) => {
        const { Mixedbread } = await import('@mixedbread/sdk');
        const client = new Mixedbread({ baseURL: url, apiKey: key, maxRetries: 0 });
        const { data } = await client.rerank({ model: 'm', query, input: documents, return_input: true });
        check(data.every((r) => r.input === documents[r.index]), 'input');
        return pairs(data);
    },
    '@openrouter/sdk': async ({ url, key, query, documents }) => {
        const { OpenRouter } = await import('@openrouter/sdk');
        const client = new OpenRouter({ serverURL: `${url}/api/v1`, apiKey: key });
        const { results } = await client.rerank.rerank({ requestBody: { model: 'm', query, documents } });
        check(results.every((r) => r.document.text === documents[r.index]), 'document');
        return pairs(results);
    },
    'continue vllm': (asked) => continueDev('vllm', asked),
    'continue cohere': (asked) => continueDev('cohere', asked),
};

function told(error) {
    let text = '';
    for (let e = error; e; e = e.cause) text += `${e.name}: ${e.message} ${JSON.stringify(e)}\n`;
    return text;
}

for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    const answer = await clients[asked.client](asked).then(
        (found) => ({ found }),
        (error) => ({ error: told(error) }),
    );
    process.stdout.write(`${JSON.stringify(answer)}\n`);
}
