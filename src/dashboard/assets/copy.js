// Shows the buttons that copy, where there is a clipboard; without it the text is selected by hand.
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
        told.textContent = 'The browser does not let it be copied. It is selected: press Ctrl+C or Command+C.';
      },
    );
  });
}
