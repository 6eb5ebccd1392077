// usage: clients.mjs cohere-v1|cohere-v2|ai-sdk URL      query and documents as JSON on standard input; prints [[index, score], ...]
import { createCohere } from '@ai-sdk/cohere';
import { rerank } from 'ai';
import { CohereClient, CohereClientV2 } from 'cohere-ai';
import { readFileSync } from 'node:fs';

const [name, url] = process.argv.slice(2);
const { query, documents } = JSON.parse(readFileSync(0, 'utf8'));
const options = { environment: url, baseUrl: url, token: 'any' };
const asked = {
    'cohere-v1': async () => (await new CohereClient(options).rerank({ model: 'm', query, documents })).results,
    'cohere-v2': async () => (await new CohereClientV2(options).rerank({ model: 'm', query, documents })).results,
    'ai-sdk': async () => {
        const model = createCohere({ baseURL: `${url}/v2`, apiKey: 'any' }).reranking('m');
        const { ranking } = await rerank({ model, query, documents });
        return ranking.map(({ originalIndex, score }) => ({ index: originalIndex, relevanceScore: score }));
    },
};
console.log(JSON.stringify((await asked[name]()).map(({ index, relevanceScore }) => [index, relevanceScore])));
