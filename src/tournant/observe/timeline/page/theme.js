// Runs before anything is painted: the reader's own choice, or else what the system prefers.
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("tournant-theme");
  } catch {
    // A file may have no storage; then the system decides every time.
  }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}
