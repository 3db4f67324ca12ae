// Shows the copy buttons if the browser has a clipboard. Otherwise the user selects the text by hand.
for (const button of document.querySelectorAll('button[data-copy]')) {
  const source = document.getElementById(button.dataset.copy);
  const told = document.getElementById('copied');
  if (!navigator.clipboard || !source) continue;
  button.hidden = false;
  button.addEventListener('click', () => {
    navigator.clipboard.writeText(source.textContent).then(
      () => { told.textContent = 'Copied.'; },
      () => {
        getSelection().selectAllChildren(source);
        told.textContent = 'The browser refused to copy. The text is selected: press Ctrl+C or Command+C.';
      },
    );
  });
}
