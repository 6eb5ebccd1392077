// Servers for the tests of the page: the real one, and one that answers whatever a test wants it to.
const { spawn } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const root = path.join(__dirname, '..', '..');
const program = path.join(process.env.QR_BUILD ?? path.join(root, 'build'), 'qwen-rerank');

/** The program with its built-in model, ready to answer. */
async function startReal(...options) {
    const child = spawn(
        program,
        ['serve', '--model', 'builtin', '--threads', '1', '--port', '0', '--log-level', 'info', ...options],
        {
            stdio: ['ignore', 'ignore', 'pipe'],
        },
    );
    let log = '';
    const url = await new Promise((resolve, reject) => {
        child.stderr.on('data', (data) => {
            log += data;
            const ready = /ready on (http:\S*:\d+)\D/.exec(log);
            if (ready) resolve(ready[1]);
        });
        child.on('exit', () => reject(new Error(`the server ended:\n${log}`)));
    });
    return {
        url,
        async metric(name) {
            const text = await (await fetch(`${url}/metrics`)).text();
            return Number(new RegExp(`^qwen_rerank_${name} (.*)$`, 'm').exec(text)[1]);
        },
        stop() {
            if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
            child.removeAllListeners('exit');
            return new Promise((resolve) => {
                child.on('exit', resolve);
                child.kill('SIGKILL');
            });
        },
    };
}

const types = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css' };

/** The page, and `answer(request, response)` for requests of scores. */
async function startFake(answer) {
    const web = path.join(root, 'src', 'server', 'web');
    const json = (response, value) => response.writeHead(200, { 'Content-Type': 'application/json' }).end(JSON.stringify(value));
    const server = http.createServer(async (request, response) => {
        if (request.url === '/v1/rerank') {
            const parts = [];
            for await (const part of request) parts.push(part);
            await answer(JSON.parse(Buffer.concat(parts)), response);
        } else if (request.url === '/v1/config') {
            json(response, { version: '0', model: 'a', backend: 'fake', device: 'none', dtype: 'f32', max_length: 10 });
        } else if (request.url === '/v1/models') {
            json(response, { data: [{ id: 'a' }, { id: 'b' }] });
        } else if (request.url === '/metrics') {
            response.end('qwen_rerank_ready 1\nqwen_rerank_requests_in_flight 0\n');
        } else {
            const file = path.join(web, request.url === '/' ? 'index.html' : path.basename(request.url));
            response.writeHead(200, { 'Content-Type': types[path.extname(file)] }).end(fs.readFileSync(file));
        }
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    return {
        url: `http://127.0.0.1:${server.address().port}`,
        stop() {
            server.closeAllConnections();
            return new Promise((resolve) => server.close(resolve));
        },
    };
}

module.exports = { root, startReal, startFake };
