export * from './build.js';
export * from './dtype.js';
export * from './file.js';
export * from './graph.js';
export * from './proto.js';
export * from './tensor.js';
