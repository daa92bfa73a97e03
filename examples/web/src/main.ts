import '@fontsource/ibm-plex-sans/latin-400.css';
import '@fontsource/ibm-plex-sans/latin-500.css';
import '@fontsource/ibm-plex-sans/latin-600.css';
import '@fontsource/ibm-plex-mono/latin-400.css';
import './style.css';
import { call } from './client.js';
import { byId } from './dom.js';
import type { ModelFacts } from './protocol.js';
import { AttentionSection } from './sections/attention.js';
import { LengthSection } from './sections/length.js';
import { ModelSection } from './sections/model.js';
import { WriteSection } from './sections/write.js';
import type { Task } from './task.js';
import { followTheme } from './theme.js';

followTheme();

let facts: ModelFacts | undefined;
const length = new LengthSection();
const write = new WriteSection();
const attention = new AttentionSection(
  (rewritten) => {
    write.show(facts!, rewritten);
    length.show(facts!);
  },
  () => {
    write.clear();
    length.clear();
  },
);
const model = new ModelSection(
  (opened) => {
    facts = opened;
    attention.show(opened);
  },
  () => {
    facts = undefined;
    attention.clear();
    write.clear();
    length.clear();
  },
);

// The worker does one thing at a time: while it is at something, only that can be stopped.
document.addEventListener('task', ({ detail: running }: CustomEventInit<Task | null>) => {
  model.enabled = !running;
  for (const button of document.querySelectorAll<HTMLButtonElement>('main button.primary')) {
    if (button.id === 'sample' || button === running?.button) continue;
    button.inert = !!running;
    button.classList.toggle('waiting', !!running);
  }
});

const device = byId('device');
call('device', undefined).then(
  ({ webgpu, name, threads }) => {
    device.textContent = webgpu
      ? `WebGPU, ${name}`
      : `No WebGPU: WebAssembly, ${threads === 1 ? 'one thread' : `${threads} threads`}`;
    device.classList.toggle('off', !webgpu);
  },
  (error) => {
    device.textContent = error.message;
    device.classList.add('off');
  },
);
