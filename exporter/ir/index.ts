// File access is in file.ts, and not here: all of this runs in a browser, too.
export * from './build.js';
export * from './bytes.js';
export * from './dtype.js';
export * from './graph.js';
export * from './proto.js';
export * from './tensor.js';
