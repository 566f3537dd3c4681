// Texts whose contrast is below what WCAG 2.1 AA asks for, as words.
(() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  // The canvas understands every way to write a colour, and mixes them like the page does.
  const mix = (colours) => {
    paint.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      paint.fillStyle = colour;
      paint.fillRect(0, 0, 1, 1);
    }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) =>
    rgb
      .map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
      .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const problems = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    if (element.closest(".sr, .skip") || element.closest("button:disabled")) continue;
    const line = [];
    for (let each = element; each; each = each.parentElement) line.unshift(each);
    const grounds = line.map((each) => getComputedStyle(each).backgroundColor);
    const style = getComputedStyle(element);
    const [one, other] = [luminance(mix(grounds)), luminance(mix([...grounds, style.color]))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const isLarge = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (contrast < (isLarge ? 3 : 4.5)) problems.push(`${contrast.toFixed(2)} ${walker.currentNode.data.trim().slice(0, 40)}`);
  }
  return problems;
})()
