import { byId } from './dom.js';

const KEY = 'onnx-fla-theme';

/** Follows the system unless the visitor says otherwise, which is remembered. */
export function followTheme(): void {
  const group = byId('theme');
  const apply = (theme: string) => {
    if (theme === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    document.dispatchEvent(new Event('theme'));
  };
  const saved = localStorage.getItem(KEY);
  for (const input of group.querySelectorAll('input')) {
    if (input.value === saved) input.checked = true;
    input.addEventListener('change', () => {
      localStorage.setItem(KEY, input.value);
      apply(input.value);
    });
  }
  if (saved) apply(saved);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () =>
    document.dispatchEvent(new Event('theme')),
  );
}

/** The colour that a custom property has now. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
