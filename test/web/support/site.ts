/** Serves the checkout's sources to a browser, and a folder of models made for the tests. */
import fs from 'node:fs';
import path from 'node:path';
import { createServer, type Plugin, type ViteDevServer } from 'vite';
import { ROOT } from '../../support/models.js';

/** Files of `folder` under /models/. */
function serveModels(folder: string): Plugin {
  return {
    name: 'models',
    configureServer({ middlewares }) {
      middlewares.use('/models', (request, response, next) => {
        const file = path.join(folder, path.normalize(decodeURIComponent(request.url ?? '/')));
        if (!file.startsWith(folder) || !fs.existsSync(file)) return next();
        response.setHeader('Content-Length', fs.statSync(file).size);
        fs.createReadStream(file).pipe(response);
      });
    },
  };
}

/** Pages asked for with `?csp` come under the strictest policy that docs/web.md promises to be enough. */
const strictPages: Plugin = {
  name: 'strict pages',
  configureServer({ middlewares }) {
    middlewares.use((request, response, next) => {
      if (request.url?.includes('?csp'))
        response.setHeader(
          'Content-Security-Policy',
          "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'",
        );
      next();
    });
  },
};

export interface Site {
  readonly origin: string;
  close(): Promise<void>;
}

/** @param folder what is served under /models/ */
export async function startSite(folder: string): Promise<Site> {
  const server: ViteDevServer = await createServer({
    root: ROOT,
    configFile: false,
    logLevel: 'error',
    appType: 'mpa',
    cacheDir: path.join(folder, '.vite'),
    plugins: [serveModels(folder), strictPages],
    server: { port: 0, hmr: false, watch: null },
    optimizeDeps: { noDiscovery: true, include: [] },
  });
  await server.listen();
  const address = server.httpServer!.address() as { port: number };
  return { origin: `http://localhost:${address.port}`, close: () => server.close() };
}
