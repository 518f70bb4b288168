// Runs before the page is painted, so that a chosen theme shows from the first frame on.
(() => {
  let theme = 'auto';
  try { theme = JSON.parse(localStorage.getItem('gyre.theme')) || 'auto'; } catch { /* none kept */ }
  document.documentElement.dataset.theme = theme === 'light' || theme === 'dark' ? theme : 'auto';
})();
