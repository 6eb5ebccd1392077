// Shows openapi.json, which lies beside this page. All of it as text: nothing here is ever HTML.
'use strict';

function element(name, text, ...children) {
    const e = document.createElement(name);
    if (text) e.textContent = text;
    e.append(...children);
    return e;
}

/** "integer or null", "list of string", "ResultsRequest": a schema in a few words. */
function typeOf(schema) {
    if (!schema) return 'anything';
    if (schema.$ref) return schema.$ref.split('/').pop();
    if (schema.anyOf) return schema.anyOf.map(typeOf).join(' or ');
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(' or ');
    if (schema.const) return JSON.stringify(schema.const);
    const types = [schema.type ?? 'anything'].flat();
    return types.map((type) => (type === 'array' ? `list of ${typeOf(schema.items)}` : type)).join(' or ');
}

/** What a reference means. */
function resolve(description, value) {
    return value?.$ref ? value.$ref.slice(2).split('/').reduce((at, key) => at[key], description) : value;
}

function properties(schema) {
    const list = element('dl');
    for (const [name, property] of Object.entries(schema.properties ?? {})) {
        const needed = schema.required?.includes(name) ? ', required' : '';
        list.append(element('dt', '', element('code', name), ` ${typeOf(property)}${needed}`));
        if (property.description) list.append(element('dd', property.description));
    }
    return list;
}

function bodies(description, schema) {
    const names = (schema.anyOf ?? [schema]).map((part) => part.$ref?.split('/').pop());
    return names.filter(Boolean).map((name) => {
        const part = description.components.schemas[name];
        return part.anyOf ? element('div', '', ...bodies(description, part)) : element('details', '', element('summary', part.title ?? name), properties(part));
    });
}

function curl(path, request) {
    const example = request?.content['application/json'].example;
    const base = location.href.replace(/\/docs\/?([?#].*)?$/, '');
    return `curl -s ${base}${path}${example ? ` -d '${JSON.stringify(example)}'` : ''}`;
}

function route(description, path, method, operation) {
    const section = element('details', '', element('summary', '', element('code', `${method.toUpperCase()} ${path}`), ` ${operation.summary}`));
    if (operation.description) section.append(element('p', operation.description));
    const request = resolve(description, operation.requestBody);
    const body = request?.content['application/json'].schema;
    if (body) section.append(element('h3', 'Body, one of'), ...bodies(description, body));
    section.append(element('pre', curl(path, request)));
    const answers = element('dl');
    for (const [status, answer] of Object.entries(operation.responses)) {
        answers.append(element('dt', '', element('code', status)), element('dd', resolve(description, answer).description));
    }
    section.append(element('h3', 'Answers'), answers);
    return section;
}

async function show() {
    const description = await (await fetch('openapi.json')).json();
    document.getElementById('title').textContent = `${description.info.title} ${description.info.version}`;
    document.getElementById('description').textContent = `${description.info.summary} ${description.info.description}`;
    for (const tag of description.tags) {
        const card = element('section', '', element('h2', tag.name));
        card.className = 'card';
        for (const [path, methods] of Object.entries(description.paths)) {
            for (const [method, operation] of Object.entries(methods)) {
                if (operation.tags.includes(tag.name)) card.append(route(description, path, method, operation));
            }
        }
        document.getElementById('routes').append(card);
    }
}

show().catch((error) => {
    document.getElementById('description').textContent = `openapi.json cannot be read: ${error.message}`;
});
