"""A little text in several languages and code, written for this file: what models are compared on when no rows are held
out. Too short for a perplexity that means something by itself; the same text for both models makes the ratio tell.
"""

TEXTS = (
    "The bridge had been closed for two winters when the town decided to repair it. Nobody wanted to pay for the work, "
    "and for months the council argued about who had promised what. In the end a carpenter and her two sons measured "
    "the old beams, wrote down every piece that had rotted, and presented a list with prices that was so short that "
    "the mayor signed it the same evening. By the first warm week of April carts were crossing again, and the market, "
    "which had moved to the other side of the river, came back to the square in front of the church.",
    "Heat flows from warm bodies to cold ones, never by itself in the other direction. A refrigerator seems to break "
    "this rule, because it takes heat out of food that is already cold and gives it to a kitchen that is warmer. The "
    "compressor makes the difference: it does work on a gas, which becomes hot, loses heat to the room, and then "
    "expands and cools far below the temperature of the food. If the motor stops, the heat flows back in a few hours.",
    "Q: How do I copy a folder to another computer without losing the dates of its files?\n"
    "A: Use a tool that keeps them. With rsync the option -a preserves permissions, owners and modification times: "
    "rsync -a photos/ user@host:/backup/photos/. Run it a second time and only what has changed is sent. To see first "
    "what would happen, add -n; nothing is written then.",
    "def moving_average(values, size):\n"
    '    """Mean of every window of `size` neighbouring values."""\n'
    "    if size < 1 or size > len(values):\n"
    '        raise ValueError("size must be between 1 and the number of values")\n'
    "    total = sum(values[:size])\n"
    "    means = [total / size]\n"
    "    for old, new in zip(values, values[size:]):\n"
    "        total += new - old\n"
    "        means.append(total / size)\n"
    "    return means\n",
    "茶叶按照制作方法可以分为绿茶、红茶、乌龙茶、白茶、黄茶和黑茶。绿茶不经过发酵，摘下的叶子很快加热，颜色和香味都保留下来；"
    "红茶则要完全发酵，所以汤色红亮，味道更浓。乌龙茶介于两者之间。存放的时候要避免潮湿和阳光，最好放在密封的罐子里，"
    "不要和气味重的东西放在一起。",
    "城市里的树不仅好看，还能降低夏天的气温。研究人员在同一条街上测量，发现树荫下的路面比没有遮挡的地方低十几度。"
    "不过种树也要选对品种：有的树根会破坏人行道，有的花粉让人过敏。管理部门通常先做调查，再决定在哪里种、种什么。",
    "Der Zug nach Norden fuhr jeden Morgen um sechs, und wer ihn verpasste, musste bis zum Abend warten. Deshalb "
    "standen die Leute schon vor Sonnenaufgang auf dem Bahnsteig, tranken Kaffee aus Blechtassen und redeten "
    "über das Wetter.",
    "En 1869 un químico ruso ordenó los elementos conocidos según su masa y observó que sus propiedades se repetían. "
    "Dejó huecos en la tabla para elementos que nadie había visto todavía, y pocos años después los encontraron.",
)
