/** WebGPU in Node for tests: Dawn (npm package `webgpu`) on Chromium's software Vulkan driver, or on no backend at all. */
import fs from 'node:fs';
import { create, globals } from 'webgpu';

const CHROMIUM = ['/usr/lib/chromium', '/usr/lib/chromium-browser', '/opt/google/chrome'];
const ICD = 'vk_swiftshader_icd.json';
const LOADER = 'libvulkan.so.1';

/** RTLD_NOW | RTLD_NODELETE. */
const KEEP_LOADED = 0x2 | 0x1000;

Object.assign(globalThis, globals);

/** Where Chromium keeps its software driver, or undefined where there is no Chromium. */
export const softwareDriver = CHROMIUM.find((folder) => fs.existsSync(`${folder}/${ICD}`));

/** Why tests that need Chromium's driver do not run here; undefined when they do. They must run where CI is set. */
export function missingSoftwareGpu(): string | undefined {
  if (softwareDriver) return undefined;
  const reason = `no Chromium with a software Vulkan driver (${ICD}) in ${CHROMIUM.join(', ')}`;
  if (process.env.CI) throw new Error(`${reason}; CI must have one: apt-get install -y chromium`);
  console.warn(`SKIPPED: ${reason}. Debian: apt-get install -y chromium`);
  return reason;
}

// Dawn aborts the process when one of these is collected as garbage before its devices are.
let validating: GPU | undefined;
let software: GPU | undefined;
const adapters: GPUAdapter[] = [];

/** Dawn's null backend: validates everything, f16 and subgroups included, and runs nothing. */
export function nullGpu(): GPU {
  validating ??= create(['backend=null']);
  return validating;
}

/** Dawn on Chromium's SwiftShader. */
export function softwareGpu(): GPU {
  if (software) return software;
  // The Vulkan loader reads the environment when Dawn creates its instance, and Dawn looks for a loader by name: one that stays loaded is
  // found wherever it came from.
  process.env.VK_DRIVER_FILES = process.env.VK_ICD_FILENAMES = `${softwareDriver}/${ICD}`;
  try {
    process.dlopen({ exports: {} } as NodeJS.Module, `${softwareDriver}/${LOADER}`, KEEP_LOADED);
  } catch {
    // It is no Node addon, and stays loaded all the same.
  }
  software = create([]);
  return software;
}

/** A device whose errors outside of error scopes end up in `errors`. */
export async function openDevice(
  gpu: GPU,
  descriptor: GPUDeviceDescriptor = {},
): Promise<{ device: GPUDevice; errors: string[] }> {
  const adapter = await gpu.requestAdapter();
  if (!adapter) throw new Error('WebGPU: no adapter');
  adapters.push(adapter);
  const device = await adapter.requestDevice(descriptor);
  const errors: string[] = [];
  device.addEventListener('uncapturederror', (event) => {
    errors.push((event as GPUUncapturedErrorEvent).error.message);
  });
  return { device, errors };
}
